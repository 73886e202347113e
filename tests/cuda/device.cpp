// What a build of PyTorch without CUDA lacks for fake tensors of device "cuda": a guard of one
// device, and hooks that say so. Nothing is ever computed on it.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override {
    return kDevice;
  }
  Device exchangeDevice(Device) const override {
    return kDevice;
  }
  Stream getStream(Device) const noexcept override {
    return Stream(Stream::DEFAULT, kDevice);
  }
  Stream getDefaultStream(Device) const override {
    return Stream(Stream::DEFAULT, kDevice);
  }
  Stream exchangeStream(Stream) const noexcept override {
    return Stream(Stream::DEFAULT, kDevice);
  }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override {
    return true;
  }
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  DeviceIndex current_device() const override {
    return 0;
  }
  DeviceIndex deviceCount() const override {
    return 1;
  }
  DeviceIndex getCurrentDevice() const override {
    return 0;
  }
};

} // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}
