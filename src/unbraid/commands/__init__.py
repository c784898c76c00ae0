"""The verbs of the command line, a module each: ``Config`` and ``run(config)``."""
