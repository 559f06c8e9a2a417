"""What a backbone sees: pure functions of pixels over its named layers, one file a tool.

Pixels are float32 [b, h, w, 3] in [0, 1], and stay there. An objective names layers, never models. A tool returns
`Explanation`s, or yields them, each with the best that it has found so far, where the work is long.
"""
