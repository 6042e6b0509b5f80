#!/usr/bin/env bash
# Installs other versions of libraries beside .venv, for tests and benchmarks that compare with them.
#
# An overlay is a folder to put on PYTHONPATH: it hides the .venv's version of what it holds and shares the rest
# (torch above all). A second run installs nothing; change an overlay's packages and it is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}

# overlay NAME PACKAGE...  installs the packages, without their dependencies, into .peers/NAME
overlay() {
    local name=$1 folder=.peers/$1
    shift
    if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$*" ]; then
        echo "$folder is up to date"
        return
    fi
    rm -rf "$folder"
    "$python" -m pip install --quiet --disable-pip-version-check --target "$folder" --no-deps "$@"
    echo "$*" >"$folder/.stamp"
    echo "$folder: $*"
}

overlay transformers-4.45 transformers==4.45.2 tokenizers==0.20.3 huggingface-hub==0.36.0
# TRL's last release with PPO for encoder-decoders; on PYTHONPATH before transformers-4.45.
overlay trl-0.11 trl==0.11.4 datasets==3.0.0 peft==0.13.2 accelerate==0.34.2 tyro==0.9.2 typeguard==4.4.1 docstring-parser==0.16 shtab==1.7.1
