"""Tools that explain what a backbone sees. Every tool addresses the layers of a frozen backbone by name.

Pixels are float32 [b, h, w, 3] in [0, 1] and stay in that range. A tool returns an `Explanation`; a slow tool yields
several, each with the best result so far.
"""
