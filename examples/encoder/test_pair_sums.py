"""`pytest` in this folder, with pytest installed (`pip install ramify[testing]`)."""

from pair_sums import PairSums

from ramify.testing.encoders import EncoderTests


class TestPairSums(EncoderTests):
    encoder = PairSums
    options = PairSums.Options(layers=2, width=24)
    gain = 1.5
