"""The embed stage: pool images and captions through an encoder's towers, by units, in an actor pool."""
