// Base of operations without parameters that are linear, max pooling for fixed argmax positions: the tangent pass maps
// tangents as the forward pass maps images.
#pragma once

#include "cpu/runtime/profile.h"
#include "engine/network.h"

namespace metagan {

// An operation that maps each image linearly; max pooling's map depends on the primal image.
class LinearOperation : public Operation {
  public:
    using Operation::Operation;

    bool rereads(size_t) const override { return false; }

    void forward(const Pass& pass, Activations& a, OperationState* state, Range images) const override {
        const Timed timed(Work::rearrange);
        map(pass, a, state, images.first, images);
    }

    void tangent(const Pass& pass, Activations& a, OperationState* state, Range primal, Range tangent) const override {
        const Timed timed(Work::rearrange);
        map(pass, a, state, primal.first, tangent);
    }

    void reverse(const Pass& pass, Activations& a, OperationState* state, const Reverse& r, float* const* x_bar,
                 float* const* x_tilde) const override {
        const Timed timed(Work::rearrange);
        for (size_t i = 0; i < plan().inputs.size(); ++i) {
            if (x_bar[i]) transpose(pass, a, state, i, r.x_first, r.images, x_bar[i]);
            if (x_tilde[i]) transpose(pass, a, state, i, r.primal.first, r.tangent, x_tilde[i]);
        }
    }

  protected:
    // `primal`: first of the images that determine the map (MaxPool), whose tangents or values `images` are.
    virtual void map(const Pass&, Activations&, OperationState*, int64_t primal, Range images) const = 0;
    virtual void transpose(const Pass&, Activations&, OperationState*, size_t i, int64_t primal, Range images,
                           float* x_bar) const = 0;
};

}  // namespace metagan
