# Image that serves a run as a user without privileges:
#   docker build --tag fukami .
#   docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/runs:/runs:ro" fukami serve /runs/resnet18 --host 0.0.0.0
# To open the server to a network, set a token: --env FUKAMI_TOKEN.
# For NVIDIA GPUs, build with --build-arg TORCH_BACKEND=cu130 and run with --gpus all.
FROM python:3.13-slim
ARG TORCH_BACKEND=cpu
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_SYSTEM_PYTHON=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
RUN pip install "uv>=0.7,<1" && \
    uv pip install --torch-backend "$TORCH_BACKEND" '.[all]' && \
    useradd --create-home --uid 1000 fukami
USER 1000
WORKDIR /home/fukami
# Compiled kernels and caches; with --read-only, add --tmpfs /tmp.
ENV XDG_CACHE_HOME=/tmp/cache NUMBA_CACHE_DIR=/tmp/cache/numba MPLCONFIGDIR=/tmp/cache/matplotlib
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["fukami"]
CMD ["serve", "deep-convnet", "--host", "0.0.0.0"]
