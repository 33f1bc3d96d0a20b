# The gateway's image: a slim Python, a virtual environment, and a user without rights.
#
#   docker build --tag vllm-passthrough .        or, with version, revision and date of the commit: make image
#
# docs/containers.md says how to run it. It needs one writable directory, /var/lib/vllm-passthrough.

# For a build that stays the same name a digest: --build-arg PYTHON_IMAGE=python:3.13-slim-trixie@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build

# Of otel, s3, parquet, kv-events and zstd, with spaces between; --build-arg EXTRAS= for none. parquet alone adds 176 MB.
ARG EXTRAS="otel s3 kv-events zstd"
# There is no history of git's in the build's context: make image passes the version of the tag.
ARG VERSION=0.1.0.dev0
# Dates in files, in seconds since 1970: make image passes the commit's.
ARG SOURCE_DATE_EPOCH=315532800

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0 \
    SETUPTOOLS_SCM_PRETEND_VERSION_FOR_TWISTED_VLLM=${VERSION} \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}

# Dependencies first: they change less often than the gateway, and their layer is used again.
COPY tools/image/requirements /requirements
RUN set -eu; \
    set -- --requirement /requirements/gateway.txt; \
    for extra in ${EXTRAS}; do \
        test -f "/requirements/${extra}.txt" || { echo "EXTRAS: there is no extra ${extra}" >&2; exit 1; }; \
        set -- "$@" --requirement "/requirements/${extra}.txt"; \
    done; \
    python -m venv --without-pip /opt/vllm-passthrough; \
    # wheels alone: nothing is compiled here, and no setup.py runs
    python -m pip --python /opt/vllm-passthrough/bin/python install --no-compile --only-binary :all: --require-hashes "$@"; \
    python -m venv /wheel; \
    /wheel/bin/python -m pip install --no-compile --only-binary :all: --require-hashes --requirement /requirements/build.txt

COPY . /source
# Compiled modules are never compared with their sources, which nobody can change: the same bytes in each build, and a
# start that looks at fewer files. By one process alone, as what else a process compiled shows in its next module.
RUN set -eu; \
    /wheel/bin/python -m pip wheel --no-build-isolation --no-deps --no-index --wheel-dir /dist /source; \
    python -m pip --python /opt/vllm-passthrough/bin/python install --no-compile --no-deps --no-index /dist/*.whl; \
    /opt/vllm-passthrough/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/vllm-passthrough/lib; \
    /opt/vllm-passthrough/bin/vllm-passthrough version


FROM ${PYTHON_IMAGE}

ARG VERSION=0.1.0.dev0
ARG REVISION=""
ARG CREATED=""
ARG SOURCE=""
ARG SBOM=""
ARG PYTHON_IMAGE
ARG SOURCE_DATE_EPOCH=315532800

# https://github.com/opencontainers/image-spec/blob/main/annotations.md
LABEL org.opencontainers.image.title="vllm-passthrough" \
      org.opencontainers.image.description="A gateway for shared vLLM servers: virtual keys, limits, usage, routing" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      vllm-passthrough.sbom="${SBOM}"

# A user with a number that nobody else has. The directory is writable for group 0 as well: OpenShift runs a container as
# any user of that group. The base image's pip is of no use here, and would have to be patched.
RUN set -eu; \
    export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH}"; \
    groupadd --gid 10001 vllm-passthrough; \
    useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /var/lib/vllm-passthrough --shell /usr/sbin/nologin vllm-passthrough; \
    install --directory --owner=10001 --group=0 --mode=0770 /var/lib/vllm-passthrough; \
    PYTHONDONTWRITEBYTECODE=1 python -m pip uninstall --yes --quiet --root-user-action ignore pip; \
    # nobody is to become somebody else here
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    rm -rf /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /var/log/faillog /var/log/lastlog

COPY --from=build /opt/vllm-passthrough /opt/vllm-passthrough

ENV PATH=/opt/vllm-passthrough/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    # the console and the log are UTF-8, whatever the base image says
    LANG=C.UTF-8 \
    # all of the container; a configuration file and --listen win over it
    VLLM_PASSTHROUGH_LISTEN=tcp:4000

USER 10001:10001
WORKDIR /var/lib/vllm-passthrough
VOLUME /var/lib/vllm-passthrough
EXPOSE 4000

# The first process becomes Python itself, so that a SIGTERM reaches the gateway, which drains for 30 s at most: stop it
# with docker stop --time 45.
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm-passthrough"]
CMD ["run"]

# Not before it has read its keys: a large database takes minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=6m --retries=3 CMD ["vllm-passthrough", "health"]
