# One image a service, each a target:
#   docker build --target base-unet --tag REGISTRY/sdxl-base-unet:0.1.0 .
# coordinator, text-encoder, base-unet, refiner, vae and cli; and shapes, the model that ships with the project, as the chart
# mounts it (weights.image). BUILD and RUNTIME have to be of one release of one distribution.
ARG BUILD=docker.io/library/rust:1.95-bookworm
ARG RUNTIME=docker.io/library/debian:bookworm-slim

FROM ${BUILD} AS chef
RUN cargo install --locked --version 0.1.78 cargo-chef
WORKDIR /src

# What the dependencies are, which changes less often than the code.
FROM chef AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
ARG PACKAGES="-p sdxl-coordinator -p sdxl-text-encoder -p sdxl-base-unet -p sdxl-refiner -p sdxl-vae -p sdxl-cli"
COPY --from=recipe /src/recipe.json recipe.json
COPY .cargo .cargo
RUN cargo chef cook --release --locked --recipe-path recipe.json $PACKAGES
COPY . .
RUN cargo build --release --locked --bins $PACKAGES

FROM ${RUNTIME} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sdxl" \
      org.opencontainers.image.description="SDXL as a cluster of gRPC services" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# As the chart runs it.
USER 65532:65532
STOPSIGNAL SIGTERM

FROM runtime AS coordinator
COPY --from=build /src/target/release/sdxl-coordinator /usr/local/bin/
EXPOSE 50051
ENTRYPOINT ["sdxl-coordinator"]

FROM runtime AS text-encoder
COPY --from=build /src/target/release/sdxl-text-encoder /usr/local/bin/
EXPOSE 50061
ENTRYPOINT ["sdxl-text-encoder"]

FROM runtime AS base-unet
COPY --from=build /src/target/release/sdxl-base-unet /usr/local/bin/
EXPOSE 50062
ENTRYPOINT ["sdxl-base-unet"]

FROM runtime AS refiner
COPY --from=build /src/target/release/sdxl-refiner /usr/local/bin/
EXPOSE 50063
ENTRYPOINT ["sdxl-refiner"]

FROM runtime AS vae
COPY --from=build /src/target/release/sdxl-vae /usr/local/bin/
EXPOSE 50064
ENTRYPOINT ["sdxl-vae"]

FROM runtime AS cli
COPY --from=build /src/target/release/sdxl /usr/local/bin/
ENTRYPOINT ["sdxl"]

FROM scratch AS shapes
COPY models/shapes/base /base
COPY models/shapes/refiner /refiner
