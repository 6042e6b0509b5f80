"""Reinforcement and preference learning as pure functions of tensors, without Lightning or a tokenizer.

- `masked`: statistics over response tokens, of one process or all
- `kl`: estimators of KL to the reference, and the controllers of its coefficient
- `scores`: scaling, clipping and penalties of a reward's scores
- `advantages`: rewards per token, GAE, whitening
- `losses`: the clipped losses and their figures
- `logprobs`: log-probabilities and entropy in slices (the one module that imports trl, and with it transformers)
- `rollout`: what one iteration learns from, whole and in minibatches
- `stats`: figures under the names that TRL's users know
- `config`: the hyper-parameters
"""
