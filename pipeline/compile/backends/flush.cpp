// While steps run, numbers below the smallest normal one, 1e-38, count as 0. What decays to them, as Adam's memory of a
// unit that is dead does after some 900 steps, would stay there for good, and a processor takes 100 times as long for it.
#if defined(__x86_64__)
#include <immintrin.h>
struct PipelineFlush {
  const unsigned before = _mm_getcsr();
  PipelineFlush() { _mm_setcsr(before | 0x8040); }
  ~PipelineFlush() { _mm_setcsr(before); }
};
#else
struct PipelineFlush {
  ~PipelineFlush() {}
};
#endif

