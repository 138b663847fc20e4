#include "folder_listing.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <memory>
#include <system_error>
#include <vector>

namespace metagan {
namespace {

#ifdef __APPLE__
#define METAGAN_MODIFIED st_mtimespec
#define METAGAN_CHANGED st_ctimespec
#else
#define METAGAN_MODIFIED st_mtim
#define METAGAN_CHANGED st_ctim
#endif

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec; }

[[noreturn]] void fail(const std::string& path) { throw std::system_error(errno, std::generic_category(), path); }

std::string link_target(int folder, const char* name) {
    char target[PATH_MAX];
    const ssize_t length = readlinkat(folder, name, target, sizeof target);
    return length < 0 ? std::string() : std::string(target, static_cast<size_t>(length));
}

}  // namespace

std::string folder_listing(const std::string& path) {
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(path.c_str()), closedir);
    if (!folder) fail(path);
    std::vector<std::string> names;
    while (true) {
        errno = 0;
        const dirent* entry = readdir(folder.get());
        if (!entry) {
            if (errno) fail(path);
            break;
        }
        std::string name = entry->d_name;
        if (name != "." && name != "..") names.push_back(std::move(name));
    }
    std::sort(names.begin(), names.end());

    std::string listing;
    const int descriptor = dirfd(folder.get());
    for (const std::string& name : names) {
        struct stat status;
        std::string target;
        int64_t numbers[4] = {};
        bool found = fstatat(descriptor, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
        if (found && S_ISLNK(status.st_mode)) {
            target = link_target(descriptor, name.c_str());
            found = fstatat(descriptor, name.c_str(), &status, 0) == 0;
        }
        if (found) {
            numbers[0] = status.st_mode & S_IFMT;
            if (!S_ISDIR(status.st_mode)) {
                numbers[1] = status.st_size;
                numbers[2] = nanoseconds(status.METAGAN_MODIFIED);
                numbers[3] = nanoseconds(status.METAGAN_CHANGED);
            }
        }
        listing.append(name).push_back('\0');
        listing.append(target).push_back('\0');
        listing.append(reinterpret_cast<const char*>(numbers), sizeof numbers);
    }
    return listing;
}

}  // namespace metagan
