"""How a model is shared out over processes and gathered again; no other package knows FSDP.

What is trained is in shards (`sharding`), what is only computed with is gathered (`gathering`), what is kept is whole
(`states`), and `strategy` is what a configuration names. Without shards all of it does nothing.
"""
