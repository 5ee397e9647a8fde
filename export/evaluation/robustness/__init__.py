"""What a bundle still gets right when its pictures are turned, hidden, spoilt or put side by side.

Changes are pure functions of a picture at the size of the net's input, uint8 RGB (height, width, 3), and of a
`numpy.random.Generator` that seed, picture and test fix.
"""
