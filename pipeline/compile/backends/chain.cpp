// A program in parts: calls that pass on tensors by number. `plan` lists for each call its part, its place among the
// calls of that part, and three lists with their lengths: inputs, outputs, and values to free.
using PipelinePart = void (*)(AtenTensorHandle*, AtenTensorHandle*);

static void pipeline_chain(
    const PipelinePart* parts, const int32_t* plan, const int32_t* end, size_t given, size_t values,
    const std::vector<int32_t>& returned, AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  std::vector<RAIIAtenTensorHandle> own(values - given);
  std::vector<AtenTensorHandle> all(inputs, inputs + given), read, made;
  all.resize(values);
  while (plan < end) {
    const PipelinePart part = parts[*plan++];
    pipeline_call = *plan++;
    read.resize(*plan++);
    for (AtenTensorHandle& handle : read) handle = all[*plan++];
    made.resize(*plan++);
    part(read.data(), made.data());
    for (AtenTensorHandle handle : made) {
      own[*plan - given] = handle;
      all[*plan++] = handle;
    }
    for (int32_t n = *plan++; n > 0; n--) own[*plan++ - given].reset();
  }
  for (int32_t value : returned) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(all[value], outputs++));
}
