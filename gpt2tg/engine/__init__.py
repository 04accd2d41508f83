"""Token ids in, logits out: the forward pass of GPT-2 in torch, in compiled CPU kernels, and in CUDA graphs."""
