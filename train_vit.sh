#!/usr/bin/env bash
# Train a Vision Transformer on images and test it: bash train_vit.sh --help
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/train_lra.sh" benchmark=vision "$@"
