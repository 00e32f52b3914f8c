"""Core ML's ML Programs, read from their files and computed with torch on any machine.

``package`` finds the files of a package and refuses unsafe ones, ``weights`` reads arrays out of weight.bin,
``program`` turns the specification into functions, blocks and operations, ``evaluator`` runs them, ``model`` answers
as coremltools' MLModel would. What an operation computes stands in one file per group of operations.
"""
