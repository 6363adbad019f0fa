# docker build -t jaxllama .                            on a CPU
# docker build -t jaxllama --build-arg DEVICE=cuda .    on an NVIDIA GPU: docker run --gpus all
# The wheels of CUDA come with jax; the host needs a driver for CUDA 13 and NVIDIA's container toolkit.
# PyTorch's wheels on the usual index are of CUDA: TORCH_INDEX names an index that has those of a CPU.
# scripts/check_dockerfile.py runs these steps without docker.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir -r ci/tools.txt
RUN /opt/build/bin/python -m build --wheel --outdir /dist .

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
ARG EXTRAS=parity
ARG TORCH_INDEX=
COPY --from=build /dist /dist
COPY constraints.txt /dist/constraints.txt
RUN python -m venv /opt/jaxllama
RUN case "$DEVICE" in cpu) extras="$EXTRAS" ;; cuda) extras="cuda${EXTRAS:+,$EXTRAS}" ;; *) echo "DEVICE=$DEVICE, expected cpu or cuda" >&2; exit 2 ;; esac \
    && /opt/jaxllama/bin/pip install --no-cache-dir --constraint /dist/constraints.txt \
       ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(echo /dist/*.whl)[$extras]"
RUN /opt/jaxllama/bin/jaxllama --help > /dev/null && /opt/jaxllama/bin/parity explain M01 > /dev/null
ENV PATH=/opt/jaxllama/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
CMD ["parity", "--help"]
