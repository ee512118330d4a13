# The server as an image, from the same locks as `make setup`:
#   docker build -t twogear .
#   docker build -t twogear:cuda --build-arg ACCELERATOR=cuda .
#   docker run --init -p 8000:8000 -v twogear-cache:/home/twogear/.cache twogear          (CUDA: add --gpus all)
# The volume keeps compiled kernels, so that only the first start compiles.
FROM python:3.11-slim-bookworm

# libnuma1 is loaded by vLLM's CPU kernels. g++ stays in the image: kernels are compiled for the CPU at the first start.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 twogear \
    && install --directory --owner=twogear --group=twogear /home/twogear/.cache

WORKDIR /opt/twogear
ARG ACCELERATOR=cpu

# The dependencies are a layer of their own: a change of the code leaves it alone.
COPY requirements/install.py requirements/${ACCELERATOR}.txt requirements/
RUN PIP_NO_CACHE_DIR=1 python requirements/install.py --no-project requirements/${ACCELERATOR}.txt \
    && .venv/bin/python -m compileall -q -j 0 -x /torch/testing/ .venv

COPY . .
RUN PIP_NO_CACHE_DIR=1 .venv/bin/python -m pip install --no-deps --no-build-isolation --editable . \
    && .venv/bin/python -m compileall -q benchmarks chat_templates engine evals model_impl server tasks training \
    && chmod --recursive a+rX benchmarks chat_templates engine evals model_impl models server tasks training

# Compiled kernels go where the volume is. The last line lets the NVIDIA container runtime in; without a GPU it means nothing.
ENV PATH=/opt/twogear/.venv/bin:$PATH \
    TORCHINDUCTOR_CACHE_DIR=/home/twogear/.cache/torchinductor \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 10001
VOLUME /home/twogear/.cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["twogear"]
CMD ["serve", "--host", "0.0.0.0"]
