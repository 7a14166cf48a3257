#!/usr/bin/env python3
"""A client that knows nothing but an address: it learns every message from the server's reflection.

    client.py HOST:PORT

Prints a line for each thing that it has checked, and ends with an exception at the first that is wrong.
"""
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PNG = b"\x89PNG\r\n\x1a\n"
LIMIT = 60  # seconds a call


class Service:
    """A service's methods as Python methods, made from its descriptor."""

    def __init__(self, channel, pool, name):
        for method in pool.FindServiceByName(name).methods:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(f"/{name}/{method.name}", request_serializer=lambda message: message.SerializeToString(),
                        response_deserializer=GetMessageClass(method.output_type).FromString)
            setattr(self, method.name, self.method(call, GetMessageClass(method.input_type)))

    @staticmethod
    def method(call, request):
        return lambda **fields: call(request(**fields), timeout=LIMIT)


def require(fact, text):
    if not fact:
        raise SystemExit(f"client.py: not so: {text}")
    print(text)


def size_of(png):
    """(width, height) from a PNG's first chunk."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def main(address):
    channel = grpc.insecure_channel(address)
    database = ProtoReflectionDescriptorDatabase(channel)
    services = sorted(database.get_services())
    require({"sdxl.v1.ImageGenerationService", "sdxl.v1.ModelService", "grpc.health.v1.Health"} <= set(services),
            f"reflection lists {', '.join(services)}")
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT)
    require(health.status == health_pb2.HealthCheckResponse.SERVING, "health is SERVING")

    pool = DescriptorPool(database)
    model = Service(channel, pool, "sdxl.v1.ModelService").GetModel()
    require(model.default_size.width > 0 and model.has_refiner, f"the model is {model.model}, with a refiner")

    images = Service(channel, pool, "sdxl.v1.ImageGenerationService")
    request = dict(prompt="a red fox", negative_prompt="", width=72, height=64, num_inference_steps=3, num_images=2, seed=5)
    answer = images.Generate(**request)
    require([image.seed for image in answer.images] == [5, 6], "Generate answers with a picture a seed")
    require(all(image.data.startswith(PNG) and size_of(image.data) == (72, 64) for image in answer.images),
            "each is a PNG of the size asked for")
    require(len(answer.trace_id) == 32 and len(answer.timings) > 0, "it has a trace id and timings")

    events = list(images.GenerateStream(**request))
    kinds = [event.WhichOneof("event") for event in events]
    require(kinds.count("progress") >= 6 and kinds.count("image") == 2 and kinds[-1] == "summary",
            "GenerateStream sends progress, the pictures and a summary")
    streamed = {e.image.image_index: e.image.image.data for e in events if e.WhichOneof("event") == "image"}
    require([streamed[0], streamed[1]] == [image.data for image in answer.images], "its pictures are the same, byte for byte")

    try:
        images.Generate(prompt="a red fox", width=100)
        code = None
    except grpc.RpcError as error:
        code = error.code()
    require(code == grpc.StatusCode.INVALID_ARGUMENT, "a width of 100 is INVALID_ARGUMENT")


if __name__ == "__main__":
    main(sys.argv[1])
