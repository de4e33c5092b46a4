# docker build -t tuner . && docker run --gpus all -v tuner-runs:/work/runs tuner
# (a folder of your own in the place of tuner-runs must be writable for user 10001)
# PyTorch's wheels bring their own CUDA libraries; the base provides the runtime that matches them.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 tuner && mkdir -p /work/runs && chown -R tuner /work
USER 10001
WORKDIR /work

ENV VIRTUAL_ENV=/work/.venv PATH=/work/.venv/bin:$PATH PYTHONUNBUFFERED=1
COPY --chown=10001 pyproject.toml README.md LICENSE ./
COPY --chown=10001 tuner tuner
COPY --chown=10001 models models
COPY --chown=10001 landscapes landscapes
COPY --chown=10001 scripts scripts
RUN python3 -m venv .venv && pip install --no-cache-dir --editable '.[page]'

VOLUME /work/runs
ENTRYPOINT ["python", "scripts/tune.py"]
