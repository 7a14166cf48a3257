#!/usr/bin/env python3
"""A client with an OpenTelemetry SDK of its own: one Generate of three pictures with a refiner, in a trace that begins here.

    traced.py HOST:PORT COLLECTOR

Sends its span to the collector by OTLP, and prints what it saw as JSON.
"""
import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

LIMIT = 120  # seconds


def main(address, collector):
    provider = TracerProvider(resource=Resource.create({"service.name": "python-client"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector, insecure=True)))
    trace.set_tracer_provider(provider)

    channel = grpc.insecure_channel(address)
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName("sdxl.v1.ImageGenerationService").FindMethodByName("Generate")
    generate = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString)
    request = GetMessageClass(method.input_type)(
        prompt="a red fox in the snow", width=128, height=128, num_inference_steps=40, num_images=3, seed=5,
        refiner={"denoising_split": 0.8})

    with trace.get_tracer("traced.py").start_as_current_span("generate three foxes") as span:
        carrier = {}
        propagate.inject(carrier)
        answer = generate(request, timeout=LIMIT, metadata=tuple(carrier.items()))
    provider.shutdown()
    print(json.dumps({
        "trace_id": trace.format_trace_id(span.get_span_context().trace_id),
        "answered_trace_id": answer.trace_id,
        "pictures": len(answer.images),
        "resumes": sum(timing.resumes for timing in answer.timings),
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
