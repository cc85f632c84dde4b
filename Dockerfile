# Three images from one file; docs/container.md says how they are run, `make image-check` executes the steps.
#   docker build --target gateway -t pit-serve-gateway:0.1.0 .   in front of remote engines: no torch
#   docker build --target cpu     -t pit-serve-cpu:0.1.0 .       vLLM in the process on a CPU
#   docker build --target gpu     -t pit-serve-gpu:0.1.0 .       vLLM in the process on CUDA (run with --gpus all)
# Each runs as user 10001 on a read-only root; it writes into /var/lib/pit and /tmp alone.
FROM debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171 AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 pit \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/pit pit

# Dependencies first: a change of the code alone does not install them again.
FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /uv && /uv/bin/pip install --no-cache-dir uv==0.13.9 && /uv/bin/uv venv /venv
ENV PATH=/venv/bin:/uv/bin:$PATH VIRTUAL_ENV=/venv UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
WORKDIR /src
COPY pyproject.toml constraints.txt overrides.txt README.md LICENSE ./

FROM build AS build-gateway
RUN uv pip install --constraints constraints.txt -r pyproject.toml --extra postgres --extra redis --extra otel
COPY app app
COPY training training
RUN uv pip install --no-deps .

FROM build AS build-cpu
# PyPI's torch is the CUDA build; an index of yours that has the CPU build alone wants --build-arg UV_TORCH_BACKEND=
ARG UV_TORCH_BACKEND=cpu
RUN uv pip install --constraints constraints.txt --overrides overrides.txt \
    -r pyproject.toml --extra cpu --extra postgres --extra redis --extra otel
COPY app app
COPY training training
RUN uv pip install --no-deps .

# No constraints here: they pin the CPU build's companions.
FROM build AS build-gpu
RUN uv pip install -r pyproject.toml --extra gpu --extra postgres --extra redis --extra otel
# Triton asks a C compiler for one module, always the same: the compiler stays here, the image gets what it made.
# The library of the driver comes with the GPU; an empty one of its name is enough to link, if it is said to be needed.
RUN apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && cd /venv/lib/python3.11/site-packages/triton/backends/nvidia \
    && gcc -shared -Wl,-soname,libcuda.so.1 -o /tmp/libcuda.so.1 -x c /dev/null \
    && gcc driver.c -O3 -shared -fPIC -Wno-psabi -o /venv/lib/triton-driver.so \
       -L/tmp -Wl,--no-as-needed -l:libcuda.so.1 -Iinclude -I/usr/include/python3.11
COPY deploy/image/triton-cc /venv/bin/triton-cc
COPY app app
COPY training training
RUN uv pip install --no-deps .

FROM base AS runtime
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/pit \
    PIT_HOST=0.0.0.0 PIT_PORT=8000 PIT_DATABASE=sqlite:////var/lib/pit/pit.db
WORKDIR /var/lib/pit
VOLUME ["/var/lib/pit", "/tmp"]
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PIT_PORT'] + '/health/live', timeout=4)"]
ENTRYPOINT ["pit"]
CMD ["serve"]

FROM runtime AS gpu
ENV CC=/venv/bin/triton-cc HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
COPY --from=build-gpu /venv /venv

FROM runtime AS cpu
USER 0:0
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
USER 10001:10001
ENV OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
COPY --from=build-cpu /venv /venv

FROM runtime AS gateway
COPY --from=build-gateway /venv /venv
