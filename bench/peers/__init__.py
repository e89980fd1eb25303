"""One file per executor: ``NAME``, and ``prepare(shape)``, which returns a run.

A run is a coroutine function that performs every task of the shape once and returns the sum
of what they returned, their depths. What an executor builds before it can run (a compiled
graph, say) belongs into ``prepare``, which is timed by itself.
Nobody limits how many tasks run at once, since the peers cannot.
"""
