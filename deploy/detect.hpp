// Detect anomalies in images with an exported model. OpenVINO runs the model, OpenCV prepares the images.
//
//     draem::Detector detector("bottle_60_int8.xml");
//     const draem::Detection found = detector(cv::imread("photo.png"));
//
// Models that register images are refused; detect.py runs them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

namespace draem {

// A connected region: its bounding box in pixels, ends excluded, and its area in pixels.
struct Region {
    int x0, y0, x1, y1, area;
};

struct Detection {
    double score;                 // image score in [0, 1]
    bool is_anomalous;            // score > threshold
    cv::Mat anomaly_map;          // float, [0, 1], at the image's own size
    std::vector<Region> regions;  // where the map is above the pixel threshold, the largest first
};

// An exported model, ready for images. One object serves one thread at a time.
class Detector {
public:
    // path: the .onnx or .xml file; what --export has written beside it must be there too.
    // threshold: in place of that of the file. Throws std::exception for a file that cannot be used.
    explicit Detector(const std::string& path, double threshold = std::nan("")) {
        ov::Core core;
        auto model = core.read_model(path);
        const bool is_onnx = path.size() > 5 && path.compare(path.size() - 5, 5, ".onnx") == 0;
        const std::string section = is_onnx ? "framework" : "draem";
        const auto text = [&](const std::string& key) {
            return model->has_rt_info({section, key}) ? model->get_rt_info<std::string>({section, key}) : "null";
        };
        const std::vector<double> size = numbers(text("img_size")), tile = numbers(text("tile_size"));
        if (size.size() != 2) throw std::runtime_error(path + ": not a model that --export has written");
        if (text("masking_and_registration").find("registered") != std::string::npos)
            throw std::runtime_error(path + ": registers images; use detect.py");
        size_ = cv::Size(int(size[1]), int(size[0]));
        tile_ = tile.empty() ? size_ : cv::Size(int(tile[1]), int(tile[0]));
        overlap_ = tile.empty() ? 0 : numbers(text("tile_overlap")).at(0);
        const bool has_thresholds = text("threshold_type") != "null";
        threshold_ = std::isnan(threshold) ? limit(text("image_threshold"), has_thresholds) : threshold;
        pixel_threshold_ = limit(text("pixel_threshold"), true);
        if (std::isnan(threshold_)) throw std::runtime_error(path + ": has no threshold; give one");
        is_black_ = text("masking") == "pre";
        if (text("masking") == "pre" || text("masking") == "post") read_region(path, text("region"));
        weight_ = window(tile_);
        model->reshape({{"image", ov::PartialShape{1, tile_.height, tile_.width, 3}}});
        // float32: by default OpenVINO computes in bfloat16 on some processors, and scores would differ slightly.
        request_ = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                                      ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY))
                       .create_infer_request();
    }

    // image: BGR, 8 bits, of any size; std::invalid_argument for anything else.
    Detection operator()(const cv::Mat& image) {
        if (image.empty() || image.type() != CV_8UC3)
            throw std::invalid_argument("wanted: an image of 8 bits in BGR, as cv::imread gives; given: " +
                                        (image.empty() ? "an empty one" : cv::typeToString(image.type())));
        cv::Mat resized, map, smooth;
        cv::resize(image, resized, size_, 0, 0, cv::INTER_LINEAR);
        const cv::Mat region = region_of(image.size());
        if (is_black_) resized.setTo(cv::Scalar::all(0), region);
        map = map_of(resized);
        if (!region.empty()) map.setTo(0, region);
        cv::blur(map, smooth, cv::Size(21, 21), cv::Point(-1, -1), cv::BORDER_CONSTANT);
        Detection found;
        cv::minMaxLoc(smooth, nullptr, &found.score);
        found.is_anomalous = found.score > threshold_;
        cv::resize(map, found.anomaly_map, image.size(), 0, 0, cv::INTER_LINEAR);
        found.regions = regions(found.anomaly_map > pixel_threshold_);
        return found;
    }

private:
    // A JSON number or array of numbers, also of arrays, as one list; null is empty.
    static std::vector<double> numbers(const std::string& text) {
        std::vector<double> found;
        for (size_t i = 0; i < text.size();) {
            if (text[i] == '-' || std::isdigit(static_cast<unsigned char>(text[i]))) {
                size_t length = 0;
                found.push_back(std::stod(text.substr(i), &length));
                i += length;
            } else {
                ++i;
            }
        }
        return found;
    }

    // A threshold; JSON has no infinity, so null is one that no score exceeds, or none at all.
    static double limit(const std::string& text, bool has_thresholds) {
        if (text != "null") return numbers(text).at(0);
        return has_thresholds ? std::numeric_limits<double>::infinity() : std::nan("");
    }

    // First pixels of the tiles along a side: evenly spaced, overlapping by at least `overlap` of a tile.
    static std::vector<int> starts(int size, int tile, double overlap) {
        const int count = int(std::ceil((size - tile) / (tile * (1 - overlap)) - 1e-9)) + 1;
        std::vector<int> pixels(count, 0);
        for (int i = 1; i < count; ++i) pixels[i] = int(std::nearbyint(double(size - tile) * i / (count - 1)));
        return pixels;
    }

    // Weights of the pixels of a tile's anomaly map: a squared sine that decreases towards the border.
    static cv::Mat window(cv::Size size) {
        cv::Mat weights(size, CV_64F);
        for (int y = 0; y < size.height; ++y)
            for (int x = 0; x < size.width; ++x)
                weights.at<double>(y, x) =
                    std::pow(std::sin(CV_PI * (y + 0.5) / size.height) * std::sin(CV_PI * (x + 0.5) / size.width), 2);
        return weights;
    }

    // Resize a region without losing any pixel.
    static cv::Mat resized_region(const cv::Mat& region, cv::Size size) {
        cv::Mat weights, by_area, by_line;
        region.convertTo(weights, CV_32F);
        cv::resize(weights, by_area, size, 0, 0, cv::INTER_AREA);
        cv::resize(weights, by_line, size, 0, 0, cv::INTER_LINEAR);
        return (by_area > 0) | (by_line > 0);
    }

    static std::vector<Region> regions(const cv::Mat& mask) {
        cv::Mat labels, stats, centers;
        const int count = cv::connectedComponentsWithStats(mask, labels, stats, centers, 8);
        std::vector<Region> found;
        for (int i = 1; i < count; ++i) {  // the first is the background
            const int* row = stats.ptr<int>(i);
            found.push_back({row[0], row[1], row[0] + row[2], row[1] + row[3], row[4]});
        }
        std::sort(found.begin(), found.end(), [](const Region& a, const Region& b) {
            return std::tuple(-a.area, a.x0, a.y0, a.x1, a.y1) < std::tuple(-b.area, b.x0, b.y0, b.x1, b.y1);
        });
        return found;
    }

    void read_region(const std::string& path, const std::string& region) {
        if (region.find(".png") == std::string::npos) {  // [[y0, y1, x0, x1], ...]
            rectangles_ = numbers(region);
            return;
        }
        const size_t slash = path.find_last_of("/\\");
        const std::string file = (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + region;
        region_ = cv::imread(file, cv::IMREAD_GRAYSCALE);
        if (region_.empty()) throw std::runtime_error(file + " is missing: --export has written it beside the model");
    }

    // The masking region at the size of the networks' images; empty without one.
    cv::Mat region_of(cv::Size size) const {
        if (region_.empty() && rectangles_.empty()) return cv::Mat();
        cv::Mat region = region_.empty() ? cv::Mat(cv::Mat::zeros(size, CV_8U)) : region_;
        for (size_t i = 0; i + 3 < rectangles_.size(); i += 4) {
            const int y0 = int(rectangles_[i]), y1 = int(rectangles_[i + 1]);
            const int x0 = int(rectangles_[i + 2]), x1 = int(rectangles_[i + 3]);
            if (y1 > size.height || x1 > size.width)
                throw std::invalid_argument("a rectangle of the masking region is not inside the image");
            region(cv::Rect(x0, y0, x1 - x0, y1 - y0)).setTo(255);
        }
        if (region.size() != size) throw std::invalid_argument("the masking region has another size than the image");
        return resized_region(region, size_);
    }

    // Anomaly map; of tiles their average, weighted by the window.
    cv::Mat map_of(const cv::Mat& resized) {
        cv::Mat total = cv::Mat::zeros(size_, CV_64F), weights = cv::Mat::zeros(size_, CV_64F), map;
        for (int top : starts(size_.height, tile_.height, overlap_))
            for (int left : starts(size_.width, tile_.width, overlap_)) {
                const cv::Rect area(left, top, tile_.width, tile_.height);
                cv::Mat part = resized(area).clone(), tile_map;
                request_.set_input_tensor(
                    ov::Tensor(ov::element::u8, {1, size_t(tile_.height), size_t(tile_.width), 3}, part.data));
                request_.infer();
                cv::Mat(tile_, CV_32F, request_.get_tensor("anomaly_map").data<float>()).convertTo(tile_map, CV_64F);
                total(area) += tile_map.mul(weight_);
                weights(area) += weight_;
            }
        cv::Mat(total / weights).convertTo(map, CV_32F);
        return map;
    }

    cv::Size size_, tile_;
    double overlap_ = 0, threshold_ = 0, pixel_threshold_ = 0;
    bool is_black_ = false;
    std::vector<double> rectangles_;
    cv::Mat region_, weight_;
    ov::InferRequest request_;
};

}  // namespace draem
