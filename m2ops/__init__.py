"""Operators of Monarch Mixer models."""
from m2ops._blockdiag import blockdiag_glu_ref, blockdiag_matmul_ref, monarch_matmul_ref
from m2ops._fft_conv import FilterSpectrum, fft_conv_ref, filter_spectrum_ref
from m2ops._monarch_mixer import monarch_mixer_ref
from m2ops._short_conv import short_conv_ref
