# Three images from one file:
#   docker build --target gateway -t pit-serve:gateway .   stateless gateway in front of remote engines, no torch
#   docker build --target cpu     -t pit-serve:cpu .       vLLM in the process on a CPU
#   docker build --target gpu     -t pit-serve:gpu .       vLLM in the process on CUDA (run with --gpus all)
# Not built in CI: no container runtime there. Checkpoints are mounted, not copied:
# A server that other machines reach wants API keys (docs/keys.md):
#   docker run -p 8000:8000 -e PIT_API_KEYS -v "$PWD/runs/demo:/models:ro" pit-serve:cpu serve --host 0.0.0.0 \
#     --policy /models/policy --improver /models/improver --gap-reward /models/gap_reward
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 VIRTUAL_ENV=/venv PATH=/venv/bin:$PATH
RUN useradd --create-home --uid 10001 pit

FROM base AS build
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /venv
WORKDIR /src
COPY pyproject.toml constraints.txt overrides.txt README.md LICENSE ./
COPY app app
COPY training training

FROM build AS build-gateway
RUN uv pip install --no-cache --constraints constraints.txt '.[postgres]'

FROM build AS build-cpu
RUN uv pip install --no-cache --constraints constraints.txt --overrides overrides.txt --torch-backend cpu '.[cpu]'

# No constraints here: they pin the CPU build's companions.
FROM build AS build-gpu
RUN uv pip install --no-cache '.[gpu]'

FROM base AS runtime
USER pit
WORKDIR /home/pit
EXPOSE 8000
ENTRYPOINT ["pit"]
CMD ["serve", "--host", "0.0.0.0"]

# Triton compiles its kernels when they are first used.
FROM runtime AS gpu
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER pit
COPY --from=build-gpu /venv /venv

FROM runtime AS cpu
USER root
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
USER pit
ENV OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
COPY --from=build-cpu /venv /venv

FROM runtime AS gateway
COPY --from=build-gateway /venv /venv
