// Keep small buffers for the next step, one for each place in the code and call of it.
static thread_local int32_t pipeline_call = 0;
static thread_local std::vector<void*> pipeline_pools;

static AOTITorchError pipeline_empty(
    AtenTensorHandle* kept, int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device,
    int32_t index, AtenTensorHandle* made) {
  if (*kept) return aoti_torch_new_tensor_handle(*kept, made);
  AOTITorchError failed = aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, made);
  int64_t bytes;
  if (failed || aoti_torch_get_storage_size(*made, &bytes) || bytes > 1 << 20) return failed;
  void* data;
  aoti_torch_get_data_ptr(*made, &data);
  pipeline_pools.push_back(data);
  *kept = *made;
  return aoti_torch_new_tensor_handle(*kept, made);
}

static AOTITorchError pipeline_part(
    AtenTensorHandle* kept, AtenTensorHandle pool, int64_t offset, int32_t dtype, int64_t dims, const int64_t* sizes,
    const int64_t* strides, AtenTensorHandle* made) {
  if (*kept) return aoti_torch_new_tensor_handle(*kept, made);
  AOTITorchError failed = aoti_torch__alloc_from_pool(pool, offset, dtype, dims, sizes, strides, made);
  void* data;
  if (failed || aoti_torch_get_data_ptr(pool, &data)) return failed;
  for (void* known : pipeline_pools) {
    if (known != data) continue;
    *kept = *made;
    return aoti_torch_new_tensor_handle(*kept, made);
  }
  return failed;
}

#define PIPELINE_KEPT \
  ([] { static thread_local AtenTensorHandle kept[PIPELINE_CALLS]; return &kept[PIPELINE_CALLS > 1 ? pipeline_call : 0]; }())
#define aoti_torch_empty_strided(...) pipeline_empty(PIPELINE_KEPT, __VA_ARGS__)
#define aoti_torch__alloc_from_pool(...) pipeline_part(PIPELINE_KEPT, __VA_ARGS__)

// The caller owns the inputs of all steps, so a step's code needs no handles of its own.
struct PipelineInput : ConstantHandle {
  using ConstantHandle::ConstantHandle;
  void reset() {}
  AtenTensorHandle release() const {
    AtenTensorHandle own;
    aoti_torch_new_tensor_handle(*this, &own);
    return own;
  }
};

static std::vector<PipelineInput> pipeline_inputs(AtenTensorHandle* handles, size_t n) {
  return std::vector<PipelineInput>(handles, handles + n);
}

#define steal_from_raw_handles_to_raii_handles pipeline_inputs
