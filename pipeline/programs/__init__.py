"""Programs: init, train, measure and finish, as functions of a pipeline's stages; and programs composed of programs."""
