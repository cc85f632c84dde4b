#!/usr/bin/env bash
# Write constraints.txt: the exact version of every package in .venv.
# torch's local part (+cpu) is left out so that the pin fits the build that each machine can get.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  echo "# Exact versions of a working environment (Python 3.11, x86-64 Linux, no GPU). Written by: make pins"
  .venv/bin/uv pip freeze --python .venv/bin/python --exclude-editable |
    sed 's/+cpu$//' | grep -vE '^(pip|uv|pit-serve)=='
} > constraints.txt.new
mv constraints.txt.new constraints.txt
