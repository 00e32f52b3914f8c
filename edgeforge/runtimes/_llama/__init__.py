"""llama.cpp through llama-cpp-python's C functions: the library and its log, opened models, quantization."""
