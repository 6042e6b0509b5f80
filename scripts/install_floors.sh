#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows beside .venv, over the same torch, for `make test-floors`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/overlay.sh

# The first three are what these require and .venv has in another version or not at all: transformers a hub below 2, wandb
# a protobuf below 7 and sentry-sdk.
overlay floors huggingface-hub==1.5.0 protobuf==6.33.0 sentry-sdk==2.0.0 $("${PYTHON:-.venv/bin/python}" scripts/floors.py)
