// The functions that Python calls: steps of a program, and the order of samples.

#define PIPELINE_PUBLIC extern "C" __attribute__((visibility("default")))

using PipelineEntry = void (*)(AtenTensorHandle*, AtenTensorHandle*);

// Inputs are borrowed, except for those at the `owned` places in `given`, which are deleted here.
// Output j of step k goes to history[j] + k * bytes[j].
[[maybe_unused]] static int pipeline_loop(
    PipelineEntry entry, AtenTensorHandle* inputs, const int64_t* given, int64_t owned, int64_t m, int64_t steps,
    char** history, const int64_t* bytes, char* error, int64_t room) {
  int failed = 0;
  const PipelineFlush flush;
  try {
    std::vector<AtenTensorHandle> out(m);
    for (int64_t k = 0; k < steps; k++) {
      entry(inputs, out.data());
      for (int64_t j = 0; j < m; j++) {
        void* data;
        aoti_torch_get_data_ptr(out[j], &data);
        if (history) std::memcpy(history[j] + k * bytes[j], data, bytes[j]);
        aoti_torch_delete_tensor_object(out[j]);
      }
    }
  } catch (std::exception const& e) {
    std::strncpy(error, e.what(), room - 1);
    failed = 1;
  }
  for (int64_t i = 0; i < owned; i++) aoti_torch_delete_tensor_object(inputs[given[i]]);
  return failed;
}

// One call: it deletes its inputs, and the caller owns its outputs.
[[maybe_unused]] static int pipeline_once(
    PipelineEntry entry, AtenTensorHandle* inputs, AtenTensorHandle* outputs, char* error, int64_t room) {
  try {
    entry(inputs, outputs);
    return 0;
  } catch (std::exception const& e) {
    std::strncpy(error, e.what(), room - 1);
    return 1;
  }
}

// The rounds of pipeline.order.permute. The attribute vectorizes them; the flags of calls do not.
template <bool wide>
__attribute__((optimize("O3", "tree-loop-vectorize"))) static void pipeline_rounds(
    int64_t* position, int64_t size, int64_t n, const int64_t* keys, int64_t rounds) {
  for (int64_t r = 0; r < rounds; r++) {
    const int64_t turn = keys[3 * r];
    const uint64_t addend = uint64_t(keys[3 * r + 1]) << 32, multiplier = uint64_t(keys[3 * r + 2]) << 32;
    for (int64_t i = 0; i < size; i++) {
      const int64_t here = position[i];
      int64_t mirror = turn - here;
      mirror += (mirror >> 63) & n;
      uint64_t pair = here > mirror ? here : mirror;
      if (wide) pair = (pair ^ (pair >> 32)) & 0xFFFFFFFF;
      position[i] = here + ((mirror - here) & (int64_t(pair * multiplier + addend) >> 63));
    }
  }
}

// The samples at positions `first` to `first + count` of a shuffle of n, in blocks that fit the cache.
PIPELINE_PUBLIC void pipeline_permute(
    int64_t* out, int64_t first, int64_t count, int64_t n, const int64_t* keys, int64_t rounds) {
  for (int64_t begin = 0; begin < count; begin += 512) {
    const int64_t size = count - begin < 512 ? count - begin : 512;
    for (int64_t i = 0; i < size; i++) out[begin + i] = first + begin + i;
    if (n > int64_t(1) << 32) pipeline_rounds<true>(out + begin, size, n, keys, rounds);
    else pipeline_rounds<false>(out + begin, size, n, keys, rounds);
  }
}

#define PIPELINE_RUN(name, space)                                                                                  \
  PIPELINE_PUBLIC int name(                                                                                        \
      AtenTensorHandle* inputs, const int64_t* given, int64_t owned, int64_t m, int64_t steps, char** history,     \
      const int64_t* bytes, char* error, int64_t room) {                                                           \
    return pipeline_loop(space::inductor_entry_impl, inputs, given, owned, m, steps, history, bytes, error, room); \
  }

#define PIPELINE_CALL(name, space)                                                                     \
  PIPELINE_PUBLIC int name(AtenTensorHandle* inputs, AtenTensorHandle* outputs, char* error, int64_t room) { \
    return pipeline_once(space::inductor_entry_impl, inputs, outputs, error, room);                    \
  }
