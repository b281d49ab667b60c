# All programs of this folder, as an unprivileged user. docs/docker.md says how to build and run it.
FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
# For example the index of PyTorch's builds for the CPU, which save gigabytes.
ARG PIP_OPTIONS=""
COPY requirements.txt constraints.txt /draem/
RUN pip install --no-cache-dir $PIP_OPTIONS -c /draem/constraints.txt -r /draem/requirements.txt
COPY . /draem
# Caches of libraries: the root file system may be read-only, and the user may have no home.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["python", "/draem/main.py"]
