// Several simulated CUDA devices in a CPU build of PyTorch.
//
// Tensors are of device type "cuda", with an index, but their memory is the host's. What runs on them is in three parts:
//   1. PyTorch is told that there are devices: an allocator, a guard (which device is current), and hooks (for autograd).
//   2. `run_on_host` takes every operation on such tensors: it checks that no two devices are mixed, as CUDA does, makes CPU
//      tensors of the same memory ("aliases"), runs the CPU kernel on them, and makes tensors of the device of what comes out.
//   3. A few operations cannot go that way and are written out: they make tensors, copy between devices, or take storages.
//
// It uses ATen's internals, so it belongs to one version of PyTorch.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <atomic>
#include <set>
#include <unordered_map>

using namespace at;
using torch::jit::Stack;

namespace {

constexpr DeviceIndex kDevices = 4;
thread_local DeviceIndex current_device = 0;

// ---------------------------------------------------------------------------------------------------------------------------
// Memory of the devices, counted

struct Usage {
  std::atomic<int64_t> bytes{0}, peak{0}, capacity{0};  // a capacity of 0 is unlimited

  void take(size_t size, DeviceIndex index) {
    int64_t now = (bytes += size);
    if (capacity && now > capacity) {
      bytes -= size;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", size, " bytes on cuda:", int(index));
    }
    for (int64_t before = peak; now > before && !peak.compare_exchange_weak(before, now);) {
    }
  }
};
Usage usage[kDevices];

// Memory that a device made itself. Its size and device stand in front of it.
struct DeviceAllocator final : Allocator {
  struct Header {
    size_t size;
    DeviceIndex index;
  };
  static constexpr size_t kAlignment = 64;

  DataPtr allocate(size_t size) override {
    usage[current_device].take(size, current_device);
    size_t blocks = (size + kAlignment - 1) / kAlignment + 1;
    auto* header = static_cast<Header*>(aligned_alloc(kAlignment, blocks * kAlignment));
    *header = {size, current_device};
    void* data = reinterpret_cast<char*>(header) + kAlignment;
    memset(data, 0xff, size);  // NaN in every floating-point type: reading what nobody wrote shows
    return {data, header, &release, Device(kCUDA, current_device)};
  }
  static void release(void* context) {
    auto* header = static_cast<Header*>(context);
    usage[header->index].bytes -= header->size;
    free(header);
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kCUDA, &device_allocator)

// ---------------------------------------------------------------------------------------------------------------------------
// What PyTorch asks an accelerator. There is one stream a device, and it is always done.

struct DeviceGuardImpl final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = kCUDA;
  DeviceType type() const override { return kCUDA; }
  Device getDevice() const override { return Device(kCUDA, current_device); }
  Device exchangeDevice(Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "CUDA error: invalid device ordinal");
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current_device = device.index();
  }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device.index() < 0 ? getDevice() : device); }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream getNewStream(Device device, int) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const override { return getStream(stream.device()); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuardImpl)

// With these, autograd runs a thread for each device, as on CUDA.
struct Hooks final : CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  DeviceIndex current_device() const override { return ::current_device; }
  DeviceIndex getCurrentDevice() const override { return ::current_device; }
  void setCurrentDevice(DeviceIndex index) const override { ::current_device = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    auto before = ::current_device;
    if (index >= 0) ::current_device = index;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};
Hooks hooks;

// `import torch` has made the hooks of a build without CUDA, and keeps them. They have no state: their table of functions is
// replaced.
void install_hooks() {
  auto& installed = const_cast<CUDAHooksInterface&>(at::detail::getCUDAHooks());
  memcpy(static_cast<void*>(&installed), static_cast<const void*>(&hooks), sizeof(void*));
}

// ---------------------------------------------------------------------------------------------------------------------------
// Aliases: tensors of the host on the memory of tensors of a device, and back

// The memory of `storage` under another device; keeps it alive.
Storage shared(const Storage& storage, Device device, Allocator* allocator) {
  auto release = [](void* context) { delete static_cast<Storage*>(context); };
  DataPtr data(const_cast<void*>(storage.data()), new Storage(storage), release, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, /*resizable=*/true);
}

// What a CPU kernel has made, as memory of a device.
Storage adopted(const Storage& storage, Device device) {
  struct Context {
    Storage storage;
    size_t size;
    DeviceIndex index;
  };
  usage[device.index()].take(storage.nbytes(), device.index());
  auto release = [](void* pointer) {
    auto* context = static_cast<Context*>(pointer);
    usage[context->index].bytes -= context->size;
    delete context;
  };
  auto* context = new Context{storage, storage.nbytes(), device.index()};
  DataPtr data(const_cast<void*>(storage.data()), context, release, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), &device_allocator, /*resizable=*/true);
}

// A tensor that lies in `storage` as `like` lies in its own.
Tensor tensor_on(const Storage& storage, const Tensor& like, c10::intrusive_ptr<TensorImpl> impl) {
  impl->set_sizes_and_strides(like.sym_sizes(), like.sym_strides(), like.sym_storage_offset());
  Tensor tensor(std::move(impl));
  if (like.is_conj()) tensor._set_conj(true);
  if (like.is_neg()) tensor._set_neg(true);
  return tensor;
}
Tensor tensor_on(const Storage& storage, const Tensor& like, DispatchKey key) {
  return tensor_on(storage, like, c10::make_intrusive<TensorImpl>(Storage(storage), DispatchKeySet(key), like.dtype()));
}
// A view has the keys of its base: it is an inference tensor if that is one, whatever the mode is now.
Tensor view_on(const Storage& storage, const Tensor& like, const Tensor& base) {
  auto impl = c10::make_intrusive<TensorImpl>(TensorImpl::VIEW, Storage(storage), base.key_set(), like.dtype());
  return tensor_on(storage, like, std::move(impl));
}

// The aliases of one call.
class Aliases {
 public:
  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    auto [found, is_new] = host_.try_emplace(tensor.storage().unsafeGetStorageImpl());
    if (is_new) {
      found->second = shared(tensor.storage(), kCPU, GetAllocator(kCPU));
      device_.emplace(found->second.unsafeGetStorageImpl(), tensor.storage());
    }
    pairs_.emplace_back(tensor, tensor_on(found->second, tensor, DispatchKey::CPU));
    return pairs_.back().second;
  }

  // An argument itself where the kernel returned it, a view of it where it returned that, else a new tensor.
  Tensor to_device(const Tensor& result, Device device) {
    if (!result.defined() || !result.is_cpu()) return result;
    for (auto& [tensor, alias] : pairs_)
      if (alias.is_same(result)) return tensor;
    auto found = device_.find(result.storage().unsafeGetStorageImpl());
    if (found != device_.end())
      for (auto& [tensor, alias] : pairs_)
        if (tensor.storage().is_alias_of(found->second)) return view_on(found->second, result, tensor);
    return tensor_on(adopted(result.storage(), device), result, DispatchKey::CUDA);
  }

  // Arguments that the kernel has resized (`out=`) are resized with their aliases.
  void follow_resizes() {
    for (auto& [tensor, alias] : pairs_) {
      if (alias.storage().data() != tensor.storage().data() || alias.storage().nbytes() != tensor.storage().nbytes()) {
        auto& storage = const_cast<Storage&>(alias.storage());
        size_t size = storage.nbytes();
        Storage taken(Storage::use_byte_size_t(), size, storage.set_data_ptr(DataPtr(nullptr, kCPU)), nullptr, false);
        auto release = [](void* context) { delete static_cast<Storage*>(context); };
        DataPtr data(const_cast<void*>(taken.data()), new Storage(taken), release, tensor.device());
        tensor.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
        tensor.storage().unsafeGetStorageImpl()->set_nbytes(size);
      }
      if (alias.sizes() != tensor.sizes() || alias.strides() != tensor.strides())
        tensor.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
    }
  }

 private:
  std::unordered_map<StorageImpl*, Storage> host_, device_;  // device's storage -> host's, and host's -> device's
  std::vector<std::pair<Tensor, Tensor>> pairs_;             // a tensor of the device and its alias
};

// ---------------------------------------------------------------------------------------------------------------------------
// Every operation

// Replaces each tensor of an argument or result by `function` of it.
template <class Function>
void map_tensors(IValue& value, Function function) {
  if (value.isTensor()) {
    value = function(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorList()) list.push_back(function(tensor));
    value = std::move(list);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (std::optional<Tensor> tensor : value.toOptionalTensorList())
      list.push_back(tensor ? std::optional<Tensor>(function(*tensor)) : tensor);
    value = std::move(list);
  }
}

// `x[indices]` and `x[indices] = y`, whose indices may lie on the host.
bool indexes(const std::string& name) {
  static const std::set<std::string> names{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
  return names.count(name);
}

// The device of the tensors among the arguments. As on CUDA, tensors of the host are allowed where they have no dimensions.
std::optional<Device> common_device(const std::string& name, const IValue* arguments, size_t count) {
  std::optional<Device> device;
  auto visit = [&](size_t i, auto check) {
    IValue copy = arguments[i];
    map_tensors(copy, [&](const Tensor& tensor) {
      if (tensor.defined()) check(tensor);
      return tensor;
    });
  };
  auto require_same = [&](const Tensor& tensor) {
    TORCH_CHECK(tensor.device() == *device, "Expected all tensors to be on the same device, but found at least two devices, ",
                *device, " and ", tensor.device(), "! (", name, ")");
  };
  for (size_t i = 0; i < count; i++)
    visit(i, [&](const Tensor& tensor) {
      if (!tensor.is_cuda()) return;
      if (!device) device = tensor.device();
      require_same(tensor);
    });
  for (size_t i = 0; device && i < count; i++)
    visit(i, [&](const Tensor& tensor) {
      if (tensor.dim() > 0 && !(indexes(name) && i == 1)) require_same(tensor);
    });
  return device;
}

void run_on_host(const c10::OperatorHandle& operation, Stack* stack) {
  const auto& schema = operation.schema();
  size_t count = schema.arguments().size(), returns = schema.returns().size();
  IValue* arguments = stack->data() + stack->size() - count;
  auto device = common_device(schema.name(), arguments, count);
  for (size_t i = 0; i < count; i++)
    if (arguments[i].isDevice()) {  // of an operation that makes a tensor
      if (!device && arguments[i].toDevice().is_cuda()) device = arguments[i].toDevice();
      arguments[i] = IValue(Device(kCPU));
    }
  TORCH_CHECK(device, "no device: ", schema.name());
  if (!device->has_index()) device = Device(kCUDA, current_device);

  Aliases aliases;
  for (size_t i = 0; i < count; i++) map_tensors(arguments[i], [&](const Tensor& tensor) { return aliases.to_host(tensor); });
  operation.callBoxed(stack);
  aliases.follow_resizes();
  for (size_t i = stack->size() - returns; i < stack->size(); i++)
    map_tensors((*stack)[i], [&](const Tensor& tensor) { return aliases.to_device(tensor, *device); });
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

// ---------------------------------------------------------------------------------------------------------------------------
// Operations that are written out

Device resolved(std::optional<Device> device) {
  return device && device->has_index() ? *device : Device(kCUDA, current_device);
}

Tensor empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<MemoryFormat> format) {
  c10::DeviceGuard guard(resolved(device));
  return at::detail::empty_generic(size, &device_allocator, DispatchKeySet(DispatchKey::CUDA), dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(resolved(device));
  auto keys = DispatchKeySet(DispatchKey::CUDA);
  return at::detail::empty_strided_generic(size, stride, &device_allocator, keys, dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {  // the one operation between devices
  Aliases aliases;
  aliases.to_host(self).copy_(aliases.to_host(source));
  return self;
}

Tensor& set_storage_with_layout(Tensor& self, Storage source, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_storage(Tensor& self, Storage source) {
  SymInt size(int64_t(source.nbytes() / self.itemsize())), stride(1);
  return set_storage_with_layout(self, std::move(source), 0, {size}, {stride});
}

void record_stream(Tensor&, Stream) {}

int64_t sdp_backend(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                    std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

Tensor histc(const Tensor& self, int64_t bins, const Scalar& min, const Scalar& max) {  // CPU kernels count no integers
  return self.cpu().to(kDouble).histc(bins, min, max).to(self.scalar_type()).to(self.device());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_with_layout);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &sdp_backend);
  m.impl("histc", &histc);
  for (auto name : {"convolution", "convolution_backward"})  // as a whole: CUDA has kernels of its own for their parts
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  install_hooks();
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&sdp_backend);
  m.attr("device_count") = int(kDevices);
  m.def("current_device", [] { return int(current_device); });
  m.def("set_device", [](int index) { current_device = index; });
  m.def("bytes", [](int index) { return usage[index].bytes.load(); });
  m.def("peak", [](int index) { return usage[index].peak.load(); });
  m.def("reset_peak", [](int index) { usage[index].peak = usage[index].bytes.load(); });
  m.def("capacity", [](int index) { return usage[index].capacity.load(); });
  m.def("set_capacity", [](int index, int64_t bytes) { usage[index].capacity = bytes; });
}
