"""One file a stage of the pipeline, under its command's name, measured beside a peer on what ships with the package."""
