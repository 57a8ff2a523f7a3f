"""Networks that are not FocoosAI's: read from others' files and modules, and made into deployed graphs."""
