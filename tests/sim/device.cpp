// An accelerator for tests, in the memory of the host: torch's PrivateUse1 device.
//
// Each operator runs on the CPU's kernel, on the same memory. Stricter than the CPU where a GPU is: tensors of two
// devices do not mix, a copy to the host waits, and what is captured as a graph runs only when it is replayed.

#include <map>
#include <mutex>
#include <set>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUFunctions.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>
#if __has_include(<ATen/core/GraphImplInterface.h>)
#include <ATen/core/GraphImplInterface.h>
#endif

namespace {

using at::Tensor;
using torch::jit::Stack;
constexpr auto SIM = c10::DeviceType::PrivateUse1;

// -- what a test may ask or forbid

struct Switches {
  bool available = false, forbid_waits = false, float64 = true, host_numbers = false;
  int64_t limit = 0;  // bytes of memory; 0: no end
  int64_t used = 0, peak = 0, waits = 0, launches = 0;
} now;
std::recursive_mutex memory;  // allocators are called from any thread

void waits(const std::string& what) {
  ++now.waits;
  TORCH_CHECK(!now.forbid_waits, "the host waits for the device: ", what);
}

// -- memory

struct Block { void* data; int64_t bytes; };

void give_back(void* context) {
  auto* block = static_cast<Block*>(context);
  std::lock_guard<std::recursive_mutex> lock(memory);
  now.used -= block->bytes;
  c10::free_cpu(block->data);
  delete block;
}

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    std::lock_guard<std::recursive_mutex> lock(memory);
    const auto size = static_cast<int64_t>(bytes);
    if (now.limit && now.used + size > now.limit)
      TORCH_CHECK_WITH(OutOfMemoryError, false, "sim out of memory. Tried to allocate ", bytes, " bytes.");
    now.used += size;
    now.peak = std::max(now.peak, now.used);
    auto* block = new Block{c10::alloc_cpu(bytes), size};
    return {block->data, block, &give_back, at::Device(SIM, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} allocator;
REGISTER_ALLOCATOR(SIM, &allocator);

std::set<const void*> pinned;

struct Pinned final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    std::lock_guard<std::recursive_mutex> lock(memory);
    void* data = c10::alloc_cpu(bytes);
    pinned.insert(data);
    return {data, data, &free, at::Device(at::kCPU)};
  }
  static void free(void* data) {
    std::lock_guard<std::recursive_mutex> lock(memory);
    pinned.erase(data);
    c10::free_cpu(data);
  }
  at::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} pinned_allocator;

bool is_pinned(const Tensor& t) {
  std::lock_guard<std::recursive_mutex> lock(memory);
  return pinned.count(t.storage().data()) > 0;
}

// -- what torch asks of a device

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return now.available; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::recursive_mutex> lock(memory);
    return pinned.count(data) > 0;
  }
  at::Device getDeviceFromPtr(void*) const override { return at::Device(SIM, 0); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const auto generator = at::make_generator<at::CPUGeneratorImpl>();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<at::CPUGeneratorImpl>(); }
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr auto static_type = SIM;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return SIM; }
  at::Device exchangeDevice(at::Device) const override { return at::Device(SIM, 0); }
  at::Device getDevice() const override { return at::Device(SIM, 0); }
  void setDevice(at::Device) const override {}
  void uncheckedSetDevice(at::Device) const noexcept override {}
  c10::Stream getStream(at::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(at::Device) const override { return stream(); }
  c10::Stream getNewStream(at::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { waits("synchronize"); }
  void synchronizeEvent(void*) const override { waits("synchronize an event"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { waits("synchronize"); }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 1.0; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, at::Device(SIM, 0)); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// -- tensors of both sides over the same memory

void end_loan(void* context) { delete static_cast<c10::Storage*>(context); }

Tensor over(const Tensor& t, const c10::Storage& storage, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), t.dtype());
  made.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
  if (t.is_conj()) made._set_conj(true);
  if (t.is_neg()) made._set_neg(true);
  return made;
}

c10::Storage lent(const c10::Storage& storage, at::Device device) {
  auto* owner = new c10::Storage(storage);
  at::DataPtr data(const_cast<void*>(storage.data()), owner, &end_loan, device);
  auto* grows = device.is_cpu() ? c10::GetCPUAllocator() : static_cast<at::Allocator*>(&allocator);
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(data), grows, true);
}

// The views of one call: the host's of the device's tensors, and back.
struct Call {
  std::vector<std::pair<Tensor, Tensor>> seen;  // device, host
  std::vector<std::pair<c10::Storage, c10::Storage>> storages;

  Tensor host(const Tensor& t) {
    for (auto& [mine, theirs] : seen)
      if (mine.is_same(t)) return theirs;
    const c10::Storage* under = nullptr;
    for (auto& [mine, theirs] : storages)
      if (mine.is_alias_of(t.storage())) under = &theirs;
    if (!under) {
      storages.emplace_back(t.storage(), lent(t.storage(), at::kCPU));
      under = &storages.back().second;
    }
    seen.emplace_back(t, over(t, *under, c10::DispatchKey::CPU));
    return seen.back().second;
  }

  Tensor device(const Tensor& t) {
    if (!t.defined() || t.layout() != at::kStrided) return t;
    for (auto& [mine, theirs] : seen)
      if (theirs.is_same(t)) return mine;
    for (auto& [mine, theirs] : storages)
      if (theirs.is_alias_of(t.storage())) return over(t, mine, c10::DispatchKey::PrivateUse1);
    storages.emplace_back(lent(t.storage(), at::Device(SIM, 0)), t.storage());
    return over(t, storages.back().first, c10::DispatchKey::PrivateUse1);
  }

  // An operator may have resized what it was given to write into.
  void settle() {
    for (auto& [mine, theirs] : seen) {
      if (theirs.storage().data() != mine.storage().data()) {
        auto moved = lent(theirs.storage(), at::Device(SIM, 0));
        mine.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(moved));
      }
      if (mine.sizes() != theirs.sizes() || mine.strides() != theirs.strides() ||
          mine.storage_offset() != theirs.storage_offset()) {
        mine.unsafeGetTensorImpl()->set_storage_offset(theirs.storage_offset());
        mine.unsafeGetTensorImpl()->set_sizes_and_strides(theirs.sizes(), theirs.strides());
      }
    }
  }
};

template <typename F>
void each(c10::IValue& value, const F& f) {
  if (value.isTensor()) {
    Tensor t = value.toTensor();
    if (t.defined()) value = c10::IValue(f(t));
  } else if (value.isTensorList()) {
    auto list = value.toTensorVector();
    for (auto& t : list) if (t.defined()) t = f(t);
    value = c10::IValue(list);
  } else if (value.isOptionalTensorList()) {
    auto list = value.toOptionalTensorVector();
    for (auto& t : list) if (t && t->defined()) t = f(*t);
    value = c10::IValue(list);
  } else if (value.isDevice()) {
    if (value.toDevice().type() == SIM) value = c10::IValue(at::Device(at::kCPU));
  }
}

// -- graphs

struct Recording {
  std::vector<std::function<void()>> launches;
  std::map<void*, std::pair<c10::Storage, std::string>> before;  // memory that was written into, as it was

  void keep(const Tensor& t) {
    const auto& storage = t.storage();
    auto* data = static_cast<char*>(storage.mutable_data());
    if (!before.count(data)) before.emplace(data, std::pair(storage, std::string(data, storage.nbytes())));
  }

  void undo() {
    for (auto& [data, kept] : before) std::memcpy(data, kept.second.data(), kept.second.size());
    before.clear();
  }
};
Recording* recording = nullptr;

struct Launch {
  c10::OperatorHandle op;
  Stack given, made;
};

// Runs an operator on the host's views; its results are the device's.
void compute(const c10::OperatorHandle& op, Stack& stack) {
  Call call;
  for (auto& value : stack) each(value, [&](const Tensor& t) { return t.device().type() == SIM ? call.host(t) : t; });
  {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
    op.callBoxed(&stack);
  }
  call.settle();
  for (auto& value : stack) each(value, [&](const Tensor& t) { return t.is_cpu() ? call.device(t) : t; });
}

// Runs it, so that what follows sees numbers; what it writes into will be undone.
void capture(const c10::OperatorHandle& op, Stack& stack) {
  Launch launch{op, stack, {}};
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite())
      each(stack[i], [&](const Tensor& t) { recording->keep(t); return t; });
  compute(op, stack);
  launch.made = stack;
  recording->launches.push_back([launch]() mutable {
    Stack again = launch.given;
    compute(launch.op, again);
    for (size_t i = 0; i < again.size(); ++i) {
      std::vector<Tensor> old, fresh;
      each(launch.made[i], [&](const Tensor& t) { old.push_back(t); return t; });
      each(again[i], [&](const Tensor& t) { fresh.push_back(t); return t; });
      for (size_t j = 0; j < old.size(); ++j) {
        if (old[j].is_same(fresh[j]) || old[j].storage().data() == fresh[j].storage().data()) continue;
        Call call;
        call.host(old[j]).copy_(call.host(fresh[j]));
      }
    }
  });
}

// -- operators

// Whose results have a size that depends on values, or are values: a GPU's host waits for them.
const std::set<std::string> READ_BACK = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal", "aten::is_nonzero", "aten::bincount"};

void check(const c10::OperatorHandle& op, const Stack& stack) {
  const auto& name = op.schema().name();
  auto look = [&](const Tensor& t) {
    const bool number = t.unsafeGetTensorImpl()->is_wrapped_number() || (now.host_numbers && t.dim() == 0) ||
        name.find("ctc_loss") != std::string::npos;  // which takes lengths on the host
    TORCH_CHECK(t.device().type() == SIM || number,
        "Expected all tensors to be on the same device, but ", name, " was given one on ", t.device(), " beside sim:0");
    TORCH_CHECK_TYPE(now.float64 || number || (t.scalar_type() != at::kDouble && t.scalar_type() != at::kComplexDouble),
        "sim has no float64 now, but ", name, " was given it");
    return t;
  };
  for (auto value : stack) each(value, look);
  if (READ_BACK.count(name)) {
    TORCH_CHECK(!recording, "operation not permitted when stream is capturing: ", name);
    waits(name);
  }
}

// Takes `count` values off the stack, and puts the results of an operator there.
void launch(const c10::OperatorHandle& op, Stack* stack, Stack own, size_t count) {
  check(op, own);
  ++now.launches;
  stack->erase(stack->end() - count, stack->end());
  recording ? capture(op, own) : compute(op, own);
  stack->insert(stack->end(), own.begin(), own.end());
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  const auto count = op.schema().arguments().size();
  launch(op, stack, Stack(stack->end() - count, stack->end()), count);
}

// Torch asks devices that it does not know for convolutions of their own.
void convolution(const c10::OperatorHandle& op, Stack* stack) {
  const bool backward = op.schema().name() == "aten::convolution_backward_overrideable";
  const auto count = op.schema().arguments().size();
  Stack own(stack->end() - count, stack->end());
  if (backward) {
    const auto weight = own[2].toTensor();
    const int64_t outputs = own[6].toBool() ? weight.size(1) * own[8].toInt() : weight.size(0);
    own.insert(own.begin() + 3, c10::IValue(std::vector<int64_t>{outputs}));
  }
  const auto name = backward ? "aten::convolution_backward" : "aten::convolution";
  launch(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""), stack, std::move(own), count);
}

void check_dtype(std::optional<at::ScalarType> dtype) {
  const auto wanted = c10::dtype_or_default(dtype);
  TORCH_CHECK_TYPE(now.float64 || (wanted != at::kDouble && wanted != at::kComplexDouble),
      "Cannot convert a tensor to float64: sim has none now; use float32 instead");
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  check_dtype(dtype);
  return at::detail::empty_generic(
      size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  check_dtype(dtype);
  return at::detail::empty_strided_generic(
      size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

void copied(const Tensor& from, const Tensor& to) {
  Call call;
  auto side = [&](const Tensor& t) { return t.is_cpu() ? t : call.host(t); };
  side(to).copy_(side(from));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  const bool crosses = from.device() != to.device();
  if (crosses && recording)
    TORCH_CHECK(false, "operation not permitted when stream is capturing: a copy between host and device");
  if (crosses && !(non_blocking && is_pinned(from.is_cpu() ? from : to)))
    waits(from.is_cpu() ? "a copy to the device from memory that is not pinned" : "a copy to the host");
  ++now.launches;
  if (recording) {
    recording->keep(to);
    recording->launches.push_back([from, to] { copied(from, to); });
  }
  copied(from, to);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return to.copy_(from);
}

at::Scalar read(const Tensor& t) {
  TORCH_CHECK(!recording, "operation not permitted when stream is capturing: reading a value");
  waits("a value is read into Python");
  Call call;
  return call.host(t).item();
}

Tensor as_strided(const Tensor& t, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
  Call call;
  auto made = at::cpu::as_strided(call.host(t), size, stride, offset);
  return call.device(made);
}

Tensor view(const Tensor& t, at::IntArrayRef size) {
  Call call;
  auto made = at::cpu::view(call.host(t), size);
  return call.device(made);
}

const Tensor& resize_(const Tensor& t, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(t, size, format);
}

Tensor& set_storage(Tensor& t, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (stride.size() == size.size()) t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  else t.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return t;
}

Tensor& set_whole_storage(Tensor& t, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / t.dtype().itemsize());
  return set_storage(t, std::move(storage), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& t, const Tensor& other) {
  return set_storage(t, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("resize_", resize_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", read);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
}

// Recurrent cells, which are fused on a GPU: the usual formulas, as operators of the device.
using Maybe = std::optional<Tensor>;

Tensor gates_of(const Tensor& a, const Maybe& bias) { return bias && bias->defined() ? a + *bias : a; }

std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& a, const Tensor& b, const Tensor& cx, const Maybe& bias_a,
                                        const Maybe& bias_b) {
  auto parts = (gates_of(a, bias_a) + gates_of(b, bias_b)).chunk(4, 1);
  const auto i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(), o = parts[3].sigmoid();
  const auto cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_backward(const Maybe& grad_hy, const Maybe& grad_cy, const Tensor& cx,
                                                 const Tensor& cy, const Tensor& workspace, bool bias) {
  auto parts = workspace.chunk(4, 1);
  const auto &i = parts[0], &f = parts[1], &g = parts[2], &o = parts[3];
  const auto gh = grad_hy && grad_hy->defined() ? *grad_hy : at::zeros_like(cy);
  const auto t = cy.tanh();
  auto gc = gh * o * (1 - t * t);
  if (grad_cy && grad_cy->defined()) gc = gc + *grad_cy;
  const auto gates = at::cat(
      {gc * g * i * (1 - i), gc * cx * f * (1 - f), gc * i * (1 - g * g), gh * t * o * (1 - o)}, 1);
  return {gates, gc * f, bias ? gates.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor> gru(const Tensor& a, const Tensor& b, const Tensor& hx, const Maybe& bias_a,
                               const Maybe& bias_b) {
  auto x = gates_of(a, bias_a).chunk(3, 1), h = gates_of(b, bias_b).chunk(3, 1);
  const auto r = (x[0] + h[0]).sigmoid(), z = (x[1] + h[1]).sigmoid(), n = (x[2] + r * h[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, h[2]}, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward(const Tensor& grad, const Tensor& workspace, bool bias) {
  auto parts = workspace.chunk(5, 1);
  const auto &r = parts[0], &z = parts[1], &n = parts[2], &hx = parts[3], &hn = parts[4];
  const auto gn = grad * (1 - z) * (1 - n * n), gz = grad * (hx - n) * z * (1 - z), gr = gn * hn * r * (1 - r);
  const auto a = at::cat({gr, gz, gn}, 1), b = at::cat({gr, gz, gn * r}, 1);
  return {a, b, grad * z, bias ? a.sum(0) : Tensor(), bias ? b.sum(0) : Tensor()};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", lstm);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_backward);
  m.impl("_thnn_fused_gru_cell", gru);
  m.impl("_thnn_fused_gru_cell_backward", gru_backward);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
}

// A copy resolves these itself; torch's own way would copy first.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv3d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
  KERNEL_PRIVATEUSEONE(nll_loss, fp32)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32)
}

#if __has_include(<ATen/core/GraphImplInterface.h>)
struct Graph final : at::GraphImplInterface {
  explicit Graph(const at::GraphImplArgs&) {}
  void capture_begin(at::MempoolId_t, at::GraphCaptureMode) override {
    TORCH_CHECK(!recording, "a graph is being captured already");
    recorded = {};
    recording = &recorded;
  }
  void capture_end() override {
    recording = nullptr;
    recorded.undo();
  }
  void instantiate() override {}
  void replay() override {
    TORCH_CHECK(!recording, "operation not permitted when stream is capturing: replay");
    ++now.launches;
    for (auto& launch : recorded.launches) launch();
  }
  void reset() override { recorded = {}; }
  at::MempoolId_t pool() const override { return {0, 1}; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string&) override {}
  Recording recorded;
};
#endif

TORCH_LIBRARY(sim, m) {
  m.def("setup() -> ()", [] {
    static Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
#if __has_include(<ATen/core/GraphImplInterface.h>)
    at::GraphImplRegistry()->Register(c10::DeviceTypeName(SIM, false), [](const at::GraphImplArgs& args) {
      return std::unique_ptr<at::GraphImplInterface>(new Graph(args));
    });
#endif
  });
  m.def("available(bool on) -> ()", [](bool on) { now.available = on; });
  m.def("is_available() -> bool", [] { return now.available; });
  m.def("forbid_waits(bool on) -> ()", [](bool on) { now.forbid_waits = on; });
  m.def("float64(bool on) -> ()", [](bool on) { now.float64 = on; });
  m.def("host_numbers(bool on) -> ()", [](bool on) { now.host_numbers = on; });
  m.def("limit(int size) -> ()", [](int64_t bytes) { now.limit = bytes ? now.used + bytes : 0; });
  m.def("waits() -> int", [] { return now.waits; });
  m.def("launches() -> int", [] { return now.launches; });
  m.def("used() -> int", [] { return now.used; });
  m.def("peak() -> int", [] { return now.peak; });
}

}  // namespace
