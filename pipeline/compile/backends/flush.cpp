// While steps run, subnormal numbers (below 1e-38) count as 0: a processor takes 100 times as long for them, and Adam's
// moments of a dead unit, which decay to them in some 900 steps, would stay there.
#if defined(__x86_64__)
#include <xmmintrin.h>
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

