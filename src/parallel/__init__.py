"""Sharding of models over processes (FSDP2), and gathering of the shards; no other package uses FSDP.

Training uses shards (`sharding`), inference gathered weights (`gathering`), checkpoints whole tensors (`states`) or
shards (`shards`); `strategy` is Lightning's strategy. Without shards these do nothing. Small agreements between
processes that no GPU is to be waited for are in `hosts`.
"""
