"""The numbers of other projects' PSPNets that test_peer_parity.py compares with, and how they are made.

    python -m tests.models.peers.mmseg CHECKOUT    writes mmseg.json anew; likewise mit, paddleseg and caffe

Each runs in the project's own environment. The project's modules are filled with weights from numpy's frozen legacy
generator, key by key, rounded to float32, and run in float64; noted are the names and shapes of all weights, and
samples of the result. The test makes a file with the same weights by the same names, and loads it.
"""
