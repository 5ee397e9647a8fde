# The service alone, for CPU (the default) or GPU: `docker build .`, `docker build --target gpu .`.
# --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:… pins the base.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# --- what is needed to build, and stays behind
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# the metadata wants a README; its changes install nothing anew
RUN python -m venv --without-pip /opt/saccade && touch README.md
COPY pyproject.toml constraints*.txt LICENSE ./
# the version alone of our own code, so that a change of the rest does not install everything anew
COPY saccade/__init__.py saccade/

# Our own package goes again: the tree is copied, with what is in no package. Tests of others serve nobody here.
FROM build AS build-cpu
RUN python -m pip --python /opt/saccade/bin/python install --constraint constraints.txt '.[cpu]' \
 && python -m pip --python /opt/saccade/bin/python uninstall --yes saccade \
 && find /opt/saccade -depth -type d -name tests -exec rm -r {} +

FROM build AS build-gpu
RUN python -m pip --python /opt/saccade/bin/python install --constraint constraints.txt \
      --constraint constraints-gpu.txt '.[gpu]' \
 && python -m pip --python /opt/saccade/bin/python uninstall --yes saccade \
 && find /opt/saccade -depth -type d -name tests -exec rm -r {} +

FROM build AS build-code
COPY saccade saccade
COPY service service
# a read-only root keeps no bytecode; unchecked, since what is in an image does not change
RUN python -m compileall -q --invalidation-mode unchecked-hash saccade service

# --- what is served
FROM ${PYTHON_IMAGE} AS served
LABEL org.opencontainers.image.title="Saccade" \
      org.opencontainers.image.description="Serves image classifiers that show where they looked" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/saccade/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SACCADE_HOST=0.0.0.0 \
    SACCADE_PORT=8000 \
    SACCADE_MODELS=/models
WORKDIR /app
COPY LICENSE ./
# one model, so that no setting need name it, and none stands in the way of a folder mounted over it
COPY models/cifar10-hybrid-s /models/cifar10-hybrid-s
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "service.health"]
ENTRYPOINT ["python", "-m", "service"]
# by number, so that an orchestrator can see that it is not root
USER 10001:10001

FROM served AS gpu
ENV SACCADE_PROVIDERS=CUDAExecutionProvider
COPY --from=build-gpu /opt/saccade /opt/saccade
COPY --from=build-code /build/saccade saccade
COPY --from=build-code /build/service service

FROM served AS cpu
COPY --from=build-cpu /opt/saccade /opt/saccade
COPY --from=build-code /build/saccade saccade
COPY --from=build-code /build/service service
