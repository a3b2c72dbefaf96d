"""Reading of original dataset files as `Structures`: code common to the readers in `ramify.sources.formats`."""
