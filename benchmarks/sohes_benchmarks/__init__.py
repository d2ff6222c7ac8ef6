"""Cost of the operations and stages of SOHES on this machine: the measurements behind `sohes bench`.

`kernels/` holds a file an operation and `stages/` a file a stage, each with its cases, inputs and providers; `suite`
checks every provider against the reference before it is timed, `limits` measures what the device could do at best, and
`report` and `figure` show the rows. Importing this package imports nothing heavy.
"""
