"""How fast is a step on a GPU, beside plain torch, torch.compile and JAX?"""
