"""Original dataset files to `Structures`: what the readers of `ramify.sources.formats` share."""
