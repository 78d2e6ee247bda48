"""Instructions and responses: the text half of the LoCa paper. Nothing heavy is imported until it is needed."""
