// The table of an instruction set. To be included last, after `constexpr const char* NAME` and `peak_loop`.

static int64_t peak(int64_t rounds) { return peak_loop(rounds); }

extern const Isa ISA;
const Isa ISA = {NAME, matmul, attention, quantize, gelu_quantize, add_norm_quantize, largest, peak, stream, NARROW_BIAS, WIDE_BIAS};
