"""One file an operation of `sohes_kernels`, under the operation's name: cases of the real pipeline, inputs, providers,
the least work.
"""
